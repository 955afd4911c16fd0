"""Curves of many layers (colours, dashes, a logarithmic axis) and what the lines above a chart say."""

from probecore.report.charts import bars_with_intervals
from probecore.report.curves import layer_profile, lines


def rows(n_series):
    return [{"x": x, "y": k + x, "series": f"layer {k}"} for k in range(n_series) for x in (1, 10, 100)]


def scales(spec, channel):
    return [layer["encoding"][channel].get("scale", {}) for layer in spec["layer"] if channel in layer["encoding"]]


def test_more_curves_than_colours_run_through_one_scale():
    few, many = (lines(rows(n), x="x", y="y", series="series").to_dict() for n in (8, 16))
    assert all("range" in scale and len(set(scale["range"])) == 8 for scale in scales(few, "color"))
    assert all(scale["scheme"] == "viridis" and len(scale["domain"]) == 16 for scale in scales(many, "color"))
    assert all(len(set(map(tuple, scale["range"]))) == 1 for scale in scales(many, "strokeDash"))


def test_a_logarithmic_axis_needs_numbers_above_0():
    plain, log = (lines(rows(2), x="x", y="y", series="series", log=on).to_dict() for on in (False, True))
    assert all("type" not in scale for scale in scales(plain, "x"))
    assert all(scale["type"] == "log" for scale in scales(log, "x"))
    from_0 = lines([{"x": 0, "y": 1.0}, {"x": 5, "y": 2.0}], x="x", y="y", log=True).to_dict()
    assert all("type" not in scale for scale in scales(from_0, "x"))


def test_the_dashed_line_says_what_it_is():
    data = [{"layer": "layer 0", "value": 1.0, "base": 0.5}, {"layer": "layer 1", "value": 2.0, "base": 0.5}]
    spec = layer_profile(data, y="value", chance="base", chance_title="shuffled", p=None).to_dict()
    assert "dashed:\N{NO-BREAK SPACE}shuffled" in " ".join(spec["title"]["subtitle"])


def test_a_subtitle_is_broken_between_words_only():
    """Parts are joined by no-break spaces, and one wider than the chart was cut at the width: "replica", "tes"."""
    words = "95 % interval over prompts; of a null over replicates; of a control the range over its own directions"
    data = [{"label": "search", "value": 1.0, "ci_low": 0.5, "ci_high": 1.5, "ci_words": words}]
    spec = bars_with_intervals(data, label="label", title="Fall").to_dict()
    said = [line.replace("\N{NO-BREAK SPACE}", " ") for line in spec["title"]["subtitle"]]
    assert len(said) > 1
    assert " ".join(said) == f"whisker: {words}"


def test_an_interval_without_an_upper_end_has_no_band():
    """A censored mean: a band that ends somewhere would say what is not known."""
    data = [{"x": 0, "y": 5.0, "ci_low": 4.0, "ci_high": 6.0}, {"x": 1, "y": 9.0, "ci_low": 3.0, "ci_high": None}]
    spec = lines(data, x="x", y="y").to_dict()
    records = next(iter(spec["datasets"].values()))
    assert [(r["low"], r["high"]) for r in records] == [(4.0, 6.0), (None, None)]
