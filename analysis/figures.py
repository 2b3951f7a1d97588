"""Common look of all figures: readable fonts, thin lines, colours that colour-blind readers tell apart
(Okabe-Ito)."""

import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C"]
DASHES = ["-", "--", "-.", ":"]
MARKERS = "oDs^vPX*"
GOOD, BAD = COLOURS[0], COLOURS[1]

# The same thing has the same colour in every figure.
FIXED = {
    "selected": COLOURS[0],
    "random": COLOURS[7],
    "all": COLOURS[4],
    "base": COLOURS[6],
    "good_mass": COLOURS[0],
    "perplexity": COLOURS[1],
    "entropy": COLOURS[2],
    "bytes_per_token": COLOURS[3],
    "good_logits": COLOURS[5],
    "length": COLOURS[4],
    "repeats": COLOURS[6],
}

plt.rcParams.update(
    {
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "legend.fontsize": 9,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "lines.linewidth": 1.1,
        "axes.grid": True,
        "grid.linewidth": 0.4,
        "grid.alpha": 0.5,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "figure.dpi": 110,
        "savefig.dpi": 130,
        "axes.titlelocation": "left",
    }
)


def colour(name, index):
    """Colour of a named line: fixed for targets and scores, else by its place."""
    return FIXED.get(name, COLOURS[index % len(COLOURS)])


def grid(count, width=3.2, height=2.4, most_columns=3):
    """A figure of `count` equal panels and the list of its axes."""
    columns = min(count, most_columns)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(4.5, width * columns), height * rows), squeeze=False
    )
    flat = list(axes.flat)
    for spare in flat[count:]:
        spare.remove()
    return figure, flat[:count]


def legend_right(axes, **options):
    """The legend beside the panel, where it hides nothing."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **options)


def smooth(values, window):
    """Mean over a window that is cut at both ends; NaN are left out."""
    import numpy

    if window <= 1:
        return values
    known = numpy.isfinite(values)
    kernel = numpy.ones(window)
    return numpy.convolve(numpy.where(known, values, 0), kernel, "same") / numpy.maximum(
        numpy.convolve(known, kernel, "same"), 1
    )


def save(figure, folder, name):
    """Write folder/name.png and close the figure; returns the path."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name + ".png")
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
    return path
