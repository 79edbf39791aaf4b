"""Units of length as files spell them."""

from __future__ import annotations

_MICROMETRES = {
    "pm": 1e-6,
    "å": 1e-4,
    "angstrom": 1e-4,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "\\u00b5m": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "mm": 1e3,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "meter": 1e6,
    "metre": 1e6,
    "inch": 25400.0,
}


def micrometres(unit: str | None) -> float | None:
    """Return how many micrometres a unit is, or None where it is no length that is known.

    Examples
    --------
    >>> micrometres("nm"), micrometres("Microns"), micrometres("pixel")
    (0.001, 1.0, None)
    """
    return _MICROMETRES.get(str(unit).strip().lower())
