# mIoU 53.4, 54.6 at several scales, 234 M parameters (arXiv:2209.15001). Weights: MIT.
# Settings: github.com/SHI-Labs/Neighborhood-Attention-Transformer, whose file reads crops of 512 x 512: those of 640
# x 640 are the paper's, which dilations are for. From weights of ImageNet-22k.
_base_ = ["../_base_/models/upernet.py", "../_base_/datasets/ade20k-640x640.py", "../_base_/schedules/160k.py"]
model = dict(
    backbone=dict(
        model="dinat_s_large",
        mixer_options=[
            dict(dilations=(1, 20)),
            dict(dilations=(1, 10)),
            dict(dilations=(1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5)),
            dict(dilations=(1, 2)),
        ],
        map_norm="layernorm_1e-5",
        drop_path_rate=0.3,
    ),
    data_preprocessor=dict(size=(640, 640)),
)
optim_wrapper = dict(type="AmpOptimWrapper")
