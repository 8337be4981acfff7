"""What a user can get wrong, as exceptions of one clear line; the command line turns them into exit code 2."""


class MvcoreError(Exception):
    """A fault that the user can mend. The text names the thing, where it stands and what to do, in one line."""

    exit_code = 2


class ConfigError(MvcoreError):
    """The run's configuration is wrong: an unknown key, a value of the wrong kind, an impossible combination."""


class DataError(MvcoreError):
    """A store or another input file is missing, empty, damaged or lacks what the run needs."""


class PluginError(MvcoreError):
    """A plugin or an id is unknown, absent, broken or does not keep its part of the contract."""


class WeightsError(MvcoreError, ValueError):
    """Weights cannot be found, read, or do not fit the model."""


class DeviceError(MvcoreError):
    """The device asked for is not there or is out of memory."""


class NonFiniteLossError(MvcoreError):
    """A loss term became NaN or infinite; the run stopped and kept its last good checkpoint."""


class Interrupted(MvcoreError):  # noqa: N818 - it is no fault
    """Ctrl-C, after the state was saved; the text says how to go on."""

    exit_code = 130
