# mIoU 45.8, 47.2 at several scales, 50 M parameters (arXiv:2209.15001). Weights: MIT.
# Settings: github.com/SHI-Labs/Neighborhood-Attention-Transformer, a layer norm for every map and dilations for large
# images.
_base_ = ["../_base_/models/upernet.py", "../_base_/datasets/ade20k.py", "../_base_/schedules/160k.py"]
model = dict(
    backbone=dict(
        model="dinat_mini",
        mixer_options=[
            dict(dilations=(1, 16)),
            dict(dilations=(1, 4, 1, 8)),
            dict(dilations=(1, 2, 1, 3, 1, 4)),
            dict(dilations=(1, 2)),
        ],
        map_norm="layernorm_1e-5",
        drop_path_rate=0.2,
    )
)
optim_wrapper = dict(type="AmpOptimWrapper")
