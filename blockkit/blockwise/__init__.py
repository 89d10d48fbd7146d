"""Block-wise evaluation of networks over volumes, and its memory. No MRI lives here."""
