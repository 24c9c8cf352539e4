"""What stands beside a module adds to its output what it makes of the input."""

from __future__ import annotations

from mtpeft.api import NotApplicable, Site


def refuse_reshaped(site: Site) -> None:
    """Refuse modules whose output has another shape than their input.

    Raises:
        NotApplicable: where that is so.
    """
    if not site.keeps_shape:
        raise NotApplicable(
            f"what stands beside {site.name} needs one shape before and behind, and {site.model.family} changes it "
            "there",
            hint='choose other sites with at, such as at = "mlp"',
        )
