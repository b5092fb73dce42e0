"""Examples in Python, which is every runtime's language: the inference, and what prepares a picture for it."""

from __future__ import annotations

from typing import Any

from .facts import Facts

PREPROCESS = "preprocess.py"
# runtime -> (imports, lines that leave the outputs of one image in `logits`); FILE, INPUT and OUTPUT are replaced
RUN: dict[str, tuple[str, str]] = {
    "onnx": (
        "import onnxruntime",
        """session = onnxruntime.InferenceSession(HERE / "FILE")
logits = session.run(["OUTPUT"], {"INPUT": prepared(sys.argv[1])})[0][0]""",
    ),
    "openvino": (
        "import openvino",
        """model = openvino.Core().compile_model(HERE / "FILE", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
logits = model(prepared(sys.argv[1]))[0][0]""",
    ),
    "litert": (
        "from ai_edge_litert.interpreter import Interpreter",
        """interpreter = Interpreter(str(HERE / "FILE"))
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], prepared(sys.argv[1]))
interpreter.invoke()
logits = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]""",
    ),
    "executorch": (
        "import torch\nfrom executorch.runtime import Runtime",
        """program = Runtime.get().load_program(HERE / "FILE")
logits = program.load_method("forward").execute([torch.from_numpy(prepared(sys.argv[1]))])[0][0]""",
    ),
    "ncnn": (
        "import ncnn",
        """net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
net.load_param(str(HERE / "FILE")), net.load_model(str(HERE / "WEIGHTS"))
run, x = net.create_extractor(), prepared(sys.argv[1])
run.input("INPUT", ncnn.Mat(x[0]).clone())
logits = run.extract("OUTPUT")[1]""",
    ),
    "coreml": (
        "import coremltools  # on macOS",
        """model = coremltools.models.MLModel(str(HERE / "FILE"))
logits = model.predict({"INPUT": prepared(sys.argv[1])})["OUTPUT"][0]""",
    ),
    "tensorrt": (
        "import tensorrt_rtx as trt\nimport torch",
        """engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine((HERE / "FILE").read_bytes())
run, image = engine.create_execution_context(), torch.from_numpy(prepared(sys.argv[1])).cuda()
run.set_input_shape("INPUT", image.shape)
logits = torch.empty(CLASSES, device="cuda")
run.set_tensor_address("INPUT", image.data_ptr()), run.set_tensor_address("OUTPUT", logits.data_ptr())
run.execute_async_v3(torch.cuda.current_stream().cuda_stream)""",
    ),
}
_LOGITS = {"tensorrt": "logits.cpu()"}


def example(facts: Facts) -> str:
    """A program that classifies the picture named on its command line; it needs `preprocess` and the runtime."""
    imports, run = RUN[facts.target]
    own = sorted([*imports.splitlines(), "from preprocess import HERE, best, prepared"], key=_third_party)
    lines = [
        f'"""Classifies a picture with {facts.file}: python example.py picture.jpg"""',
        "",
        "import sys",
        "",
        *own,
        "",
        *facts.filled(run).splitlines(),
        f"for probability, name in best({_LOGITS.get(facts.target, 'logits')}):",
        '    print(f"{probability:.6g} {name}")',
    ]
    return "\n".join([*lines, ""])


def preprocess(facts: Facts) -> str:
    """What the example takes a picture, and the names of the classes, from; it needs Pillow and NumPy."""
    lines = [
        f'"""Pictures as {facts.file} wants them, and what its outputs mean."""',
        "",
        "from pathlib import Path",
        "",
        "import numpy as np",
        "from PIL import Image",
        "",
        "HERE = Path(__file__).parent",
        "",
        "",
        "def prepared(picture):",
        f'    """The picture in a file: float32 ({facts.batch}, {facts.channels}, {facts.height}, {facts.width})."""',
        *(f"    {line}" for line in _prepared(facts)),
        "",
        "",
        "def best(logits, count=5):",
        '    """(probability, class) of the most probable classes."""',
        "    logits = np.array(logits)",
        "    p = np.exp(logits - logits.max())",
        *_names(facts),
        f"    return [(p[i] / p.sum(), {'names[i]' if facts.classes else 'i'}) for i in p.argsort()[::-1][:count]]",
    ]
    return "\n".join([*lines, ""])


def _third_party(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line.lower()


def _prepared(facts: Facts) -> list[str]:
    """From the path of a picture to the input of the file."""
    height, width = facts.height, facts.width
    return [
        f'image = Image.open(picture).convert("{"L" if facts.channels == 1 else "RGB"}")',
        *_resize(facts),
        f"left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)",
        f"x = np.asarray(image.crop((left, top, left + {width}, top + {height})), np.float32) / 255",
        *_normalise(facts),
        f"return x.repeat({facts.batch}, 0)" if facts.batch > 1 else "return x",
    ]


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
    return lines


def _array(values: list[float]) -> str:
    return f"np.float32([{', '.join(f'{value:.8g}' for value in values)}])"


def _names(facts: Facts) -> list[str]:
    return [f'    names = (HERE / "{facts.classes}").read_text("utf-8").splitlines()'] if facts.classes else []
