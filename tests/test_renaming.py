"""A public name or parameter gets another name without a program of a user breaking."""

import inspect

import old_names
import pytest

from blockkit.renaming import renamed_parameter


@renamed_parameter("lamda", "reg_weight", gone_in="0.4")
def denoise(image: float, reg_weight: float = 0.5, *, n_iterations: int = 1) -> float:
    """Return less of an image."""
    return image - n_iterations * reg_weight


def test_an_old_parameter_still_serves_and_the_warning_names_the_new_one_and_the_end() -> None:
    told = r"^lamda= of denoise is now reg_weight=: write that\. The old name goes in blockkit 0\.4\.$"
    with pytest.warns(FutureWarning, match=told) as caught:
        assert denoise(3.0, lamda=1.0, n_iterations=2) == 1.0
    assert [warning.filename for warning in caught] == [__file__]  # it points at the line of the user


def test_the_new_parameter_is_the_only_one_in_the_signature_and_warns_of_nothing() -> None:
    assert denoise(3.0, 1.0) == denoise(3.0, reg_weight=1.0) == 2.0
    assert list(inspect.signature(denoise).parameters) == ["image", "reg_weight", "n_iterations"]
    assert denoise.__doc__ == "Return less of an image."


def test_an_old_and_a_new_parameter_together_are_refused() -> None:
    with pytest.raises(TypeError, match="denoise got lamda and reg_weight, which are the same: write reg_weight alone"):
        denoise(3.0, lamda=1.0, reg_weight=1.0)
    with pytest.warns(FutureWarning), pytest.raises(TypeError, match="multiple values"):
        denoise(3.0, 1.0, lamda=1.0)


def test_an_old_name_of_a_module_still_serves() -> None:
    told = r"^old_names\.recon is now old_names\.reconstruct: write that\. The old name goes in blockkit 0\.4\.$"
    with pytest.warns(FutureWarning, match=told) as caught:
        assert old_names.recon is old_names.reconstruct
    with pytest.warns(FutureWarning, match=told) as imported:
        from old_names import recon
    assert recon is old_names.reconstruct
    assert {warning.filename for warning in [*caught, *imported]} == {__file__}
    with pytest.raises(AttributeError, match="denoise"):
        old_names.denoise  # noqa: B018
