"""MIRNets of this package in what others load networks by: the Hugging Face Hub, torch.hub, spandrel."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import mirnet_fast
from mirnet_fast import MIRNet, modules, reference
from mirnet_fast.checkpoints import CheckpointError, network_arguments

from .cases import exhaustive
from .foreign import installed

ROOT = Path(__file__).parents[1]
CONFIG = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1, "height": 2}


@pytest.fixture
def network():
    torch.manual_seed(1)
    return reference.MIRNet(**CONFIG).eval()


@pytest.fixture
def image():
    return torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def same(model, network, image):
    assert type(model) is MIRNet and not model.training
    with torch.no_grad():
        torch.testing.assert_close(model(image), network(image), atol=1e-5, rtol=0)


def ours(network):
    model = MIRNet(**CONFIG).eval()
    model.load_state_dict(network.state_dict())
    return model


@exhaustive
class TestHub:
    @pytest.fixture(autouse=True)
    def hub(self):
        return installed("huggingface_hub")

    @pytest.mark.parametrize("make", [ours, lambda network: mirnet_fast.accelerate(network) and network])
    def test_a_folder_and_back(self, network, image, tmp_path, make):
        with torch.no_grad():
            expected = network(image)
        make(network).save_pretrained(tmp_path)
        told = json.loads((tmp_path / "config.json").read_text())
        assert {name: told[name] for name in CONFIG} == CONFIG and told["width"] == 2
        loaded = MIRNet.from_pretrained(tmp_path)
        assert type(loaded) is MIRNet and not loaded.training
        with torch.no_grad():
            torch.testing.assert_close(loaded(image), expected, atol=1e-5, rtol=0)
        assert network_arguments(tmp_path / "model.safetensors")["height"] == 2
        assert "mirnet_fast" in (tmp_path / "README.md").read_text()

    def test_push_sends_that_folder(self, network, monkeypatch, hub):
        class Api:
            def __init__(self, **options):
                pass

            def create_repo(self, repo_id, **options):
                return hub.RepoUrl(f"https://huggingface.co/{repo_id}")

            def upload_folder(self, folder_path, **options):
                return sorted(path.name for path in Path(folder_path).iterdir())

        monkeypatch.setattr(hub.hub_mixin, "HfApi", Api)
        assert ours(network).push_to_hub("me/mine") == ["README.md", "config.json", "model.safetensors"]

    def test_its_engine_still_runs_it(self, network, image, tmp_path):
        ours(network).save_pretrained(tmp_path)
        loaded = MIRNet.from_pretrained(tmp_path)
        with torch.no_grad():
            loaded(image)
            assert type(mirnet_fast.engine.plan_of(loaded, image)) is type(
                mirnet_fast.engine.plan_of(ours(network), image)
            )


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    spec = importlib.util.spec_from_file_location("mirnet_fast.modules._hub_again", modules._hub.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for call in (module.OnHub.from_pretrained, module.OnHub().save_pretrained, module.OnHub().push_to_hub):
        with pytest.raises(ImportError, match=r"_\w+ needs huggingface_hub .*'mirnet-fast\[hub\]'"):
            call("folder")


def test_torch_hub(network, image, tmp_path):
    torch.save({"state_dict": network.state_dict()}, tmp_path / "model.pth")
    same(torch.hub.load(str(ROOT), "mirnet", tmp_path / "model.pth", source="local"), network, image)
    made = torch.hub.load(str(ROOT), "mirnet", source="local", **CONFIG)
    assert made.state_dict().keys() == network.state_dict().keys()
    assert type(torch.hub.load(str(ROOT), "pretrained", source="local")) is MIRNet
    with pytest.raises(CheckpointError, match="made with height=2, not 3"):
        torch.hub.load(str(ROOT), "mirnet", tmp_path / "model.pth", source="local", height=3)


@exhaustive
class TestSpandrel:
    @pytest.fixture(autouse=True)
    def spandrel(self):
        spandrel = installed("spandrel")
        from mirnet_fast.spandrel import install

        for _ in range(2):
            install()
        return spandrel

    def saved(self, network, path, how):
        if how == "published":
            torch.save({"epoch": 1, "state_dict": network.state_dict()}, path)
        elif how == "parallel":
            torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, path)
        else:
            mirnet_fast.save_checkpoint(network, path)
        return path

    @pytest.mark.parametrize(
        ("name", "how"), [("a.pth", "published"), ("b.pth", "parallel"), ("c.safetensors", "ours")]
    )
    def test_files_load(self, network, image, tmp_path, spandrel, name, how):
        path = self.saved(network, tmp_path / name, how)
        loaded = spandrel.ModelLoader().load_from_file(path)
        assert isinstance(loaded, spandrel.ImageModelDescriptor)
        assert loaded.architecture.id == "MIRNet" and loaded.purpose == "Restoration"
        same(loaded.eval().model, network, image)
        odd = image[..., :7, :11]
        assert loaded(odd).shape == odd.shape  # padded by spandrel, to what the network needs

    def test_its_other_architectures_are_not_ours(self, network, spandrel):
        support = spandrel.MAIN_REGISTRY["MIRNet"]
        assert spandrel.MAIN_REGISTRY.architectures("detection")[0] is support
        assert support.detect(network.state_dict())
        assert not support.detect({"conv_in.weight": torch.zeros(8, 3, 3, 3)})

    def test_what_does_not_fit(self, network, spandrel):
        state = network.state_dict()
        with pytest.raises(CheckpointError, match="one tensor in the model, but with different values"):
            spandrel.MAIN_REGISTRY.load({n: v + i for i, (n, v) in enumerate(state.items())})
        with pytest.raises(CheckpointError, match="not the names and shapes of a MIRNet"):
            spandrel.MAIN_REGISTRY.load({n: v for n, v in state.items() if n != "conv_out.weight"})

    def test_names_that_safetensors_drops(self, network, image, tmp_path, spandrel):
        safetensors.torch.save_model(network, str(tmp_path / "plain.safetensors"))
        loaded = spandrel.ModelLoader().load_from_file(tmp_path / "plain.safetensors")
        same(loaded.eval().model, network, image)
