"""Examples in Python, which is every runtime's language."""

from __future__ import annotations

from typing import Any

from .facts import Facts

# runtime -> (imports, lines that leave the outputs of one image in `logits`); FILE, INPUT and OUTPUT are replaced
RUN: dict[str, tuple[str, str]] = {
    "onnx": (
        "import onnxruntime",
        """session = onnxruntime.InferenceSession(here / "FILE")
logits = session.run(["OUTPUT"], {"INPUT": x})[0][0]""",
    ),
    "openvino": (
        "import openvino",
        """model = openvino.Core().compile_model(here / "FILE", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
logits = model(x)[0][0]""",
    ),
    "litert": (
        "from ai_edge_litert.interpreter import Interpreter",
        """interpreter = Interpreter(str(here / "FILE"))
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
interpreter.invoke()
logits = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]""",
    ),
    "executorch": (
        "import torch\nfrom executorch.runtime import Runtime",
        """program = Runtime.get().load_program(here / "FILE")
logits = program.load_method("forward").execute([torch.from_numpy(x)])[0][0].numpy()""",
    ),
    "ncnn": (
        "import ncnn",
        """net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
net.load_param(str(here / "FILE")), net.load_model(str(here / "WEIGHTS"))
run = net.create_extractor()
run.input("INPUT", ncnn.Mat(x[0]).clone())
logits = np.array(run.extract("OUTPUT")[1])""",
    ),
    "coreml": (
        "import coremltools  # on macOS",
        """model = coremltools.models.MLModel(str(here / "FILE"))
logits = model.predict({"INPUT": x})["OUTPUT"][0]""",
    ),
    "tensorrt": (
        "import tensorrt_rtx as trt\nimport torch",
        """engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine((here / "FILE").read_bytes())
run, image, output = engine.create_execution_context(), torch.from_numpy(x).cuda(), torch.empty(1, CLASSES).cuda()
run.set_input_shape("INPUT", x.shape)
for name, tensor in {"INPUT": image, "OUTPUT": output}.items():
    run.set_tensor_address(name, tensor.data_ptr())
run.execute_async_v3(torch.cuda.current_stream().cuda_stream)
logits = output.cpu().numpy()[0]""",
    ),
}


def example(facts: Facts) -> str:
    """A program that classifies the picture named on its command line; it needs Pillow, NumPy and the runtime."""
    imports, run = RUN[facts.target]
    own = sorted([*imports.splitlines(), "import numpy as np", "from PIL import Image"], key=_third_party)
    lines = [
        f'"""Classifies a picture with {facts.file}: python example.py picture.jpg"""',
        "",
        "import sys",
        "from pathlib import Path",
        "",
        *own,
        "",
        "here = Path(__file__).parent",
        f'image = Image.open(sys.argv[1]).convert("{"L" if facts.channels == 1 else "RGB"}")',
        *_resize(facts),
        f"left, top = round((image.width - {facts.width}) / 2), round((image.height - {facts.height}) / 2)",
        f"x = np.asarray(image.crop((left, top, left + {facts.width}, top + {facts.height})), np.float32) / 255",
        *_normalise(facts),
        *facts.filled(run).splitlines(),
        "p = np.exp(logits - logits.max())",
        *_names(facts),
        "for i in p.argsort()[::-1][:5]:",
        f'    print(f"{{p[i] / p.sum():.6g}} {{{"names[i]" if facts.classes else "i"}}}")',
    ]
    return "\n".join([*lines, ""])


def _third_party(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line.lower()


def _resize(facts: Facts) -> list[str]:
    resize: dict[str, Any] = facts.preprocess["resize"]
    filter_ = f"Image.Resampling.{resize['interpolation'].upper()}"
    if "shorter_side" in resize:
        side = resize["shorter_side"]
        return [f"image = image.resize([int({side} * side / min(image.size)) for side in image.size], {filter_})"]
    if "covers" in resize:
        height, width = resize["covers"]["height"], resize["covers"]["width"]
        return [
            f"ratio = min(image.height / {height}, image.width / {width})",
            f"image = image.resize([round(side / ratio) for side in image.size], {filter_})",
        ]
    return [f"image = image.resize(({resize['width']}, {resize['height']}), {filter_})"]


def _normalise(facts: Facts) -> list[str]:
    lines = []
    if not facts.in_graph:
        lines.append(f"x = (x - {_array(facts.preprocess['mean'])}) / {_array(facts.preprocess['std'])}")
    lines.append("x = np.ascontiguousarray(x.transpose(2, 0, 1)[None])" if facts.channels == 3 else "x = x[None, None]")
    return [*lines, f"x = x.repeat({facts.batch}, 0)"] if facts.batch > 1 else lines


def _array(values: list[float]) -> str:
    return f"np.float32([{', '.join(f'{value:.8g}' for value in values)}])"


def _names(facts: Facts) -> list[str]:
    return [f'names = (here / "{facts.classes}").read_text("utf-8").splitlines()'] if facts.classes else []
