"""Models spread by `device_map` have the states of the same model in one place; what was offloaded is refused."""

import importlib.util

import numpy as np
import pytest
import torch
from zoo import PROMPTS, tiny, tokenizer

from lmprobe import capture, open_model, wrap_model
from probecore import CertificateError, InputError

pytestmark = pytest.mark.transformers
PRESENT = importlib.util.find_spec("accelerate") is not None


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / request.param
    tiny(request.param).save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


@pytest.mark.skipif(not PRESENT, reason="device_map needs accelerate, which is not installed")
def test_a_device_map_changes_no_bit(folder):
    """Only one device is here, so what is tested is that accelerate's hooks on every block leave taps as they are."""
    plain = open_model(folder, device="cpu", quiet=True)
    blocks = {f"{plain.sites.blocks_path}.{i}": "cpu" for i in range(3)}
    rest = {n: "cpu" for n, m in plain.model.named_modules() if n and not any(n.startswith(b) for b in blocks)}
    rest = {n: d for n, d in rest.items() if not any(b.startswith(f"{n}.") for b in blocks)}
    for device_map in ({"": "cpu"}, {**rest, **blocks}):
        mapped = open_model(folder, device_map=device_map, quiet=True)
        assert mapped.info["weights_hash"] == plain.info["weights_hash"]
        assert mapped.certificate.holds("taps") and mapped.certificate.holds("read-out")
        ours, theirs = (capture(lm, PROMPTS, layers="all", at="mean") for lm in (mapped, plain))
        for layer in ours.layers:
            assert np.array_equal(ours.values(layer), theirs.values(layer))


@pytest.mark.skipif(not PRESENT, reason="device_map needs accelerate, which is not installed")
def test_offloaded_weights_are_refused(folder, tmp_path):
    """A hash of weights that are not there would be one of nothing."""
    plain = open_model(folder, device="cpu", quiet=True)
    last = f"{plain.sites.blocks_path}.2"
    names = [n for n, _ in plain.model.named_modules() if n and not n.startswith(last)]
    leaves = {n: "cpu" for n in names if not any(o.startswith(f"{n}.") for o in [*names, last])}
    with pytest.raises(InputError, match="weights must be in memory"):
        open_model(
            folder, device_map={**leaves, last: "disk"}, load_options={"offload_folder": str(tmp_path)}, quiet=True
        )


def test_options_of_from_pretrained_are_handed_on(folder):
    assert open_model(folder, device="cpu", load_options={"attn_implementation": "eager"}).info["attention"] == "eager"
    with pytest.raises(InputError, match="could not be loaded"):
        open_model(folder, device="cpu", load_options={"no_such_option": 1}, quiet=True)
    assert torch.get_default_dtype() == torch.float32


def coarse_llama():
    """Return a model whose MLPs round to scales of the whole pass, as 8-bit kernels do: 1 % of the largest value."""
    model = tiny("llama")

    def hook(module, args, output):
        step = output.abs().max() * 0.01
        return (output / step).round() * step

    for block in model.model.layers:
        block.mlp.register_forward_hook(hook)
    return model


def test_a_quantised_model_is_read_and_its_noise_floor_says_how_coarse_it_is():
    """The same arithmetic in a model that does not say that it is quantised is a fault, and is refused."""
    with pytest.raises(CertificateError, match="'causal'"):
        capture(wrap_model(coarse_llama(), tokenizer()), PROMPTS)
    model = coarse_llama()
    model.is_quantized = True
    lm = wrap_model(model, tokenizer())
    assert lm.info["quantised"] and 1e-3 < lm.certificate.noise_floor < 0.1
    together, alone = (capture(lm, PROMPTS, layers="block 2", deterministic=one).values("block 2") for one in (0, 1))
    gap = np.abs(together - alone).max()
    assert 1e-4 < gap < 0.2 * np.sqrt((alone**2).mean())
