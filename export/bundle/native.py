"""Examples in the language of a runtime's platform: a function that takes prepared pixels and gives the best class.

The pixels are those of a picture that was resized and cropped as preprocess.json says, three bytes each (one, where the
model takes grey pictures), row by row.
"""

from __future__ import annotations

from .facts import Facts

SWIFT = """// Classifies WIDTH x HEIGHT pixels, resized and cropped as preprocess.json says, with FILE.
import CoreML

func classify(_ pixels: [UInt8], with model: MLModel) throws -> Int {
    let mean: [Float] = [MEAN], std: [Float] = [STD]
    let x = try MLMultiArray(shape: [1, CHANNELS, HEIGHT, WIDTH], dataType: .float32)
    for i in 0..<PIXELS {
        for c in 0..<CHANNELS {
            x[c * PIXELS + i] = NSNumber(value: (Float(pixels[CHANNELS * i + c]) / 255 - mean[c]) / std[c])
        }
    }
    let output = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: ["INPUT": x]))
    let logits = output.featureValue(for: "OUTPUT")!.multiArrayValue!
    return (0..<CLASSES).max { logits[$0].floatValue < logits[$1].floatValue }!
}

// let model = try MLModel(contentsOf: Bundle.main.url(forResource: "MODEL", withExtension: "mlmodelc")!)
"""
_KOTLIN = """// Classifies WIDTH x HEIGHT pixels, resized and cropped as preprocess.json says, with FILE.
IMPORTS

fun classify(pixels: ByteArray, model: KIND): Int {
    val mean = floatArrayOf(MEAN_F)
    val std = floatArrayOf(STD_F)
    val x = FloatArray(CHANNELS * PIXELS) { k ->
        val c = k / PIXELS
        ((pixels[CHANNELS * (k % PIXELS) + c].toInt() and 255) / 255f - mean[c]) / std[c]
    }
RUN
    return logits.indices.maxByOrNull { logits[it] }!!
}

// val model = LOAD
"""
_LITERT = "import com.google.ai.edge.litert."
LITERT = (
    _KOTLIN.replace("IMPORTS", f"{_LITERT}Accelerator\n{_LITERT}CompiledModel")
    .replace("KIND", "CompiledModel")
    .replace(
        "RUN",
        """    val inputs = model.createInputBuffers()
    val outputs = model.createOutputBuffers()
    inputs[0].writeFloat(x)
    model.run(inputs, outputs)
    val logits = outputs[0].readFloat()""",
    )
    .replace("LOAD", 'CompiledModel.create(context.assets, "FILE", CompiledModel.Options(Accelerator.CPU))')
)
EXECUTORCH = (
    _KOTLIN.replace(
        "IMPORTS",
        "\n".join(f"import org.pytorch.executorch.{name}" for name in ("EValue", "Module", "Tensor")),
    )
    .replace("KIND", "Module")
    .replace(
        "RUN",
        """    val image = Tensor.fromBlob(x, longArrayOf(1, CHANNELS, HEIGHT, WIDTH))
    val logits = model.forward(EValue.from(image))[0].toTensor().dataAsFloatArray""",
    )
    .replace("LOAD", 'Module.load("FILE")  // the path of a copy in the app\'s own folder')
)
_CPP = """// Classifies WIDTH x HEIGHT pixels, resized and cropped as preprocess.json says, with FILE. C++17.
#include <algorithm>
#include <vector>
INCLUDES

std::vector<float> prepared(const unsigned char* pixels) {
    const float mean[] = {MEAN_F}, deviation[] = {STD_F};
    std::vector<float> x(CHANNELS * PIXELS);
    for (int i = 0; i < PIXELS; ++i)
        for (int c = 0; c < CHANNELS; ++c)
            x[c * PIXELS + i] = (pixels[CHANNELS * i + c] / 255.f - mean[c]) / deviation[c];
    return x;
}

int classify(const unsigned char* pixels, KIND) {
    std::vector<float> x = prepared(pixels);
RUN
    return std::max_element(logits, logits + CLASSES) - logits;
}

// LOAD
"""


def _cpp(includes: str, kind: str, run: str, load: str) -> str:
    return _CPP.replace("INCLUDES", includes).replace("KIND", kind).replace("RUN", run).replace("LOAD", load)


ONNX = _cpp(
    "#include <onnxruntime_cxx_api.h>",
    "Ort::Session& model",
    """    const int64_t shape[] = {1, CHANNELS, HEIGHT, WIDTH};
    const char *in = "INPUT", *out = "OUTPUT";
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto image = Ort::Value::CreateTensor<float>(memory, x.data(), x.size(), shape, 4);
    auto outputs = model.Run(Ort::RunOptions{}, &in, &image, 1, &out, 1);
    const float* logits = outputs[0].GetTensorData<float>();""",
    'Ort::Env env; Ort::Session model(env, "FILE", Ort::SessionOptions{});',
)
OPENVINO = _cpp(
    "#include <openvino/openvino.hpp>",
    "ov::CompiledModel& model",
    """    auto request = model.create_infer_request();
    request.set_input_tensor(ov::Tensor(ov::element::f32, {1, CHANNELS, HEIGHT, WIDTH}, x.data()));
    request.infer();
    auto output = request.get_output_tensor(0);
    const float* logits = output.data<float>();""",
    'ov::Core core; auto model = core.compile_model("FILE", "CPU");',
)
NCNN = _cpp(
    "#include <net.h>",
    "const ncnn::Net& model",
    """    ncnn::Mat output, image(WIDTH, HEIGHT, CHANNELS);  // each of its channels is padded
    for (int c = 0; c < CHANNELS; ++c) std::copy_n(x.data() + c * PIXELS, PIXELS, (float*)image.channel(c));
    auto run = model.create_extractor();
    run.input("INPUT", image);
    run.extract("OUTPUT", output);
    const float* logits = output;""",
    'ncnn::Net model; model.load_param("FILE"); model.load_model("WEIGHTS");',
)
TENSORRT = _cpp(
    "#include <NvInfer.h>\n#include <cuda_runtime_api.h>",
    "nvinfer1::IExecutionContext& run",
    """    float *image, *output, logits[CLASSES];
    cudaMalloc((void**)&image, x.size() * sizeof(float)), cudaMalloc((void**)&output, sizeof(logits));
    cudaMemcpy(image, x.data(), x.size() * sizeof(float), cudaMemcpyHostToDevice);
    run.setInputShape("INPUT", nvinfer1::Dims4{1, CHANNELS, HEIGHT, WIDTH});
    run.setTensorAddress("INPUT", image), run.setTensorAddress("OUTPUT", output);
    run.enqueueV3(nullptr);
    cudaMemcpy(logits, output, sizeof(logits), cudaMemcpyDeviceToHost);
    cudaFree(image), cudaFree(output);""",
    "engine = runtime->deserializeCudaEngine(bytes of FILE, size); run = engine->createExecutionContext();",
)
# target -> (name of the file, its text)
EXAMPLES = {
    "coreml": ("Example.swift", SWIFT),
    "litert": ("Example.kt", LITERT),
    "executorch": ("Example.kt", EXECUTORCH),
    "onnx": ("example.cpp", ONNX),
    "openvino": ("example.cpp", OPENVINO),
    "ncnn": ("example.cpp", NCNN),
    "tensorrt": ("example.cpp", TENSORRT),
}


def example(facts: Facts) -> tuple[str, str] | None:
    """(name, text) of the example in the language of the platform; None where Python is that language."""
    if facts.target not in EXAMPLES or facts.batch > 1:
        return None
    name, text = EXAMPLES[facts.target]
    return name, facts.filled(text)
