"""pytest tests/serve/test_exported.py: exported files are served, and read nothing outside their folder."""

import os

import numpy as np
import pytest
from jaxtyping import config

import vismoe
from vismoe.serve import Models
from vismoe.weights.exported.onnx_model import open_session

from .conftest import IMAGES, encoded, files, network, refusal

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'vismoe[export]'")
CONTENTS = [encoded(image) for image in IMAGES[:3]]


@pytest.mark.slow
def test_an_exported_file_answers(start, tmp_path):
    """As the network does; it has no features, no experts and no capacity."""
    config.update("jaxtyping_disable", True)  # exported shapes are symbols
    try:
        path = vismoe.export_onnx(network(), tmp_path / "model.onnx", dynamic_batch=True).path
    finally:
        config.update("jaxtyping_disable", False)
    client = start(Models([str(path)]))
    answer = client.post("/v1/predict", files=files(*CONTENTS)).json()["predictions"]
    for found, expected in zip(answer, vismoe.Predictor(network()).predict(IMAGES[:3]), strict=True):
        assert [each["probability"] for each in found] == pytest.approx(expected.probabilities, abs=1e-5)
    (facts,) = client.get("/v1/model").json()["models"]
    assert (facts["name"], facts["parameters"], facts["macs"]) == ("model.onnx", None, None)
    assert (facts["sparse"], facts["capacity"], facts["embedding"]) == (False, False, False)
    assert refusal(client.post("/v1/embed", files=files(CONTENTS[0]))) == (422, "not_supported")
    assert client.post("/v1/reload").status_code == 200


@pytest.mark.parametrize("location", ["weights.bin", "../secret.bin", "ABSOLUTE", "link.bin", "sub/../../secret.bin"])
def test_external_data_stays_in_the_folder(location, tmp_path):
    """A file that names weights outside its folder, also through a link, is not opened: it could show any file of the
    machine."""
    helper, folder = onnx.helper, tmp_path / "model"
    folder.mkdir()
    for place in (tmp_path / "secret.bin", folder / "weights.bin"):
        np.arange(4, dtype=np.float32).tofile(place)
    os.symlink(tmp_path / "secret.bin", folder / "link.bin")
    (folder / "sub").mkdir()
    weights = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location.replace("ABSOLUTE", str(tmp_path / "secret.bin"))), ("length", "16")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    x, y = (helper.make_tensor_value_info(name, 1, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    if location == "weights.bin":
        assert open_session(folder / "model.onnx").run(None, {"x": np.zeros(4, np.float32)})[0].tolist() == [0, 1, 2, 3]
    else:
        with pytest.raises(Exception, match=r"(?i)external data path"):
            open_session(folder / "model.onnx")
