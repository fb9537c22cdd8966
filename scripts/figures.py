"""What the plot_*.py scripts share."""

import sys


def pyplot():
    """matplotlib.pyplot, drawing to files. Ends the program with one line where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        sys.exit(f"{sys.argv[0]}: the figure needs matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot
    return matplotlib.pyplot
