"""Figures and widgets: the only wing that imports matplotlib and ipywidgets."""
