"""Sources of records that are not environments: recorded episodes in our own plain format (`files`)."""

from jaxwm.data.files import append, open_data, recorded_env

__all__ = ["append", "open_data", "recorded_env"]
