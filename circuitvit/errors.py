"""The one exception that users of circuitvit meet."""


class CircuitError(ValueError):
    """Something was asked for that cannot be done.

    The message says what was got, what was expected, and what to do about it.
    """
