"""What we push to the Hugging Face Hub, timm and safetensors pull, over real HTTP; and timm's files come back."""

from pathlib import Path

import pytest

from tests.hub_server import TOKEN, Hub, client, hub  # noqa: F401  `hub` is the fixture


@pytest.mark.slow  # a process of its own imports everything anew
def test_round_trip_through_timm(hub: Hub, tmp_path: Path):  # noqa: F811
    found = client(
        f"""
import timm
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
model = make()
transept.push_to_hub(model, "me/mine", token={TOKEN!r})
x = torch.randn(1, 3, 32, 32)
theirs = timm.create_model("hf-hub:me/mine", pretrained=True).eval()
found["module"] = type(theirs).__module__
found["timm"] = str(torch.allclose(theirs(x), model(x), atol=1e-5))
config = lambda model: json.dumps(timm.data.resolve_data_config(model=model))  # JSON has no tuples
found["config"] = str(config(theirs) == config(model))
stored = load_file(hf_hub_download("me/mine", "model.safetensors"))
found["safetensors"] = str(all(torch.equal(stored[key], value) for key, value in model.state_dict().items()))
with torch.no_grad():
    theirs.head.bias += 1
timm.models.save_for_hf(theirs, {str(tmp_path / "timm")!r}, safe_serialization=True)
back = make()
transept.load_weights(back, {str(tmp_path / "timm" / "model.safetensors")!r})
found["back"] = str(torch.allclose(back(x), model(x) + 1, atol=1e-5))
""",
        tmp_path / "home",
        hub.url,
    )
    assert found == {
        "module": "timm.models.cait",
        "timm": "True",
        "config": "True",
        "safetensors": "True",
        "back": "True",
    }
