"""Examples in the language of a runtime's platform: a function that takes pixels and gives the best class.

The pixels are those of a picture that was resized and cropped as preprocess.json says, three bytes each (one, where the
model takes grey pictures), row by row. What normalises them is a file of its own.
"""

from __future__ import annotations

from .facts import Facts

SWIFT = """// Classifies WIDTH x HEIGHT pixels with FILE; Preprocess.swift is beside it.
import CoreML

// let model = try MLModel(contentsOf: Bundle.main.url(forResource: "MODEL", withExtension: "mlmodelc")!)
func classify(_ pixels: [UInt8], with model: MLModel) throws -> Int {
    let features = try MLDictionaryFeatureProvider(dictionary: ["INPUT": prepared(pixels)])
    let output = try model.prediction(from: features)
    let logits = output.featureValue(for: "OUTPUT")!.multiArrayValue!
    return (0..<CLASSES).max { logits[$0].floatValue < logits[$1].floatValue }!
}
"""
SWIFT_PREPROCESS = """// WIDTH x HEIGHT pixels, resized and cropped as preprocess.json says, as FILE wants them.
import CoreML

func prepared(_ pixels: [UInt8]) throws -> MLMultiArray {
    let mean: [Float] = [MEAN], std: [Float] = [STD]
    let x = try MLMultiArray(shape: [1, CHANNELS, HEIGHT, WIDTH], dataType: .float32)
    for i in 0..<PIXELS {
        for c in 0..<CHANNELS {
            x[c * PIXELS + i] = NSNumber(value: (Float(pixels[CHANNELS * i + c]) / 255 - mean[c]) / std[c])
        }
    }
    return x
}
"""
LITERT = """// Classifies WIDTH x HEIGHT pixels with FILE; Preprocess.kt is beside it.
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel

// val model = CompiledModel.create(context.assets, "FILE", CompiledModel.Options(Accelerator.CPU))
fun classify(pixels: ByteArray, model: CompiledModel): Int {
    val inputs = model.createInputBuffers()
    val outputs = model.createOutputBuffers()
    inputs[0].writeFloat(prepared(pixels))
    model.run(inputs, outputs)
    val logits = outputs[0].readFloat()
    return logits.indices.maxByOrNull { logits[it] }!!
}
"""
EXECUTORCH = """// Classifies WIDTH x HEIGHT pixels with FILE; Preprocess.kt is beside it.
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

// val model = Module.load("FILE")  // the path of a copy in the app's own folder
fun classify(pixels: ByteArray, model: Module): Int {
    val image = Tensor.fromBlob(prepared(pixels), longArrayOf(1, CHANNELS, HEIGHT, WIDTH))
    val logits = model.forward(EValue.from(image))[0].toTensor().dataAsFloatArray
    return logits.indices.maxByOrNull { logits[it] }!!
}
"""
KOTLIN_PREPROCESS = """// WIDTH x HEIGHT pixels, resized and cropped as preprocess.json says, as FILE wants them.
fun prepared(pixels: ByteArray): FloatArray {
    val mean = floatArrayOf(MEAN_F)
    val std = floatArrayOf(STD_F)
    return FloatArray(CHANNELS * PIXELS) { k ->
        val c = k / PIXELS
        ((pixels[CHANNELS * (k % PIXELS) + c].toInt() and 255) / 255f - mean[c]) / std[c]
    }
}
"""
CPP_PREPROCESS = """// Pixels, resized and cropped as preprocess.json says, as FILE wants them; its best class. C++17.
#pragma once
#include <algorithm>
#include <vector>

inline std::vector<float> prepared(const unsigned char* pixels) {
    const float mean[] = {MEAN_F}, deviation[] = {STD_F};
    std::vector<float> x(CHANNELS * PIXELS);
    for (int i = 0; i < PIXELS; ++i)
        for (int c = 0; c < CHANNELS; ++c)
            x[c * PIXELS + i] = (pixels[CHANNELS * i + c] / 255.f - mean[c]) / deviation[c];
    return x;
}

inline int best(const float* logits) { return std::max_element(logits, logits + CLASSES) - logits; }
"""
_CPP = """// Classifies WIDTH x HEIGHT pixels (see preprocess.hpp) with LOAD
#include "preprocess.hpp"
INCLUDES

int classify(const unsigned char* pixels, KIND) {
    std::vector<float> x = prepared(pixels);
RUN
}
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
    return best(outputs[0].GetTensorData<float>());""",
    'Ort::Session(env, "FILE", Ort::SessionOptions{})',
)
OPENVINO = _cpp(
    "#include <openvino/openvino.hpp>",
    "ov::CompiledModel& model",
    """    auto request = model.create_infer_request();
    request.set_input_tensor(ov::Tensor(ov::element::f32, {1, CHANNELS, HEIGHT, WIDTH}, x.data()));
    request.infer();
    auto output = request.get_output_tensor(0);
    return best(output.data<float>());""",
    'ov::Core().compile_model("FILE", "CPU")',
)
NCNN = _cpp(
    "#include <net.h>",
    "const ncnn::Net& model",
    """    ncnn::Mat output, image(WIDTH, HEIGHT, CHANNELS);  // each of its channels is padded
    for (int c = 0; c < CHANNELS; ++c) std::copy_n(x.data() + c * PIXELS, PIXELS, (float*)image.channel(c));
    auto run = model.create_extractor();
    run.input("INPUT", image), run.extract("OUTPUT", output);
    return best(output);""",
    'load_param("FILE"), load_model("WEIGHTS")',
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
    return cudaFree(image), cudaFree(output), best(logits);""",
    "an execution context of the engine FILE",
)
# target -> ((name of the example, its text), (name of what prepares pixels for it, its text))
EXAMPLES = {
    "coreml": (("Example.swift", SWIFT), ("Preprocess.swift", SWIFT_PREPROCESS)),
    "litert": (("Example.kt", LITERT), ("Preprocess.kt", KOTLIN_PREPROCESS)),
    "executorch": (("Example.kt", EXECUTORCH), ("Preprocess.kt", KOTLIN_PREPROCESS)),
    "onnx": (("example.cpp", ONNX), ("preprocess.hpp", CPP_PREPROCESS)),
    "openvino": (("example.cpp", OPENVINO), ("preprocess.hpp", CPP_PREPROCESS)),
    "ncnn": (("example.cpp", NCNN), ("preprocess.hpp", CPP_PREPROCESS)),
    "tensorrt": (("example.cpp", TENSORRT), ("preprocess.hpp", CPP_PREPROCESS)),
}


def examples(facts: Facts) -> list[tuple[str, str]]:
    """(name, text) of the example in the language of the platform, and of what prepares pixels for it.

    Empty where Python is that language, or a file takes several images at once.
    """
    if facts.target not in EXAMPLES or facts.batch > 1:
        return []
    return [(name, facts.filled(text)) for name, text in EXAMPLES[facts.target]]
