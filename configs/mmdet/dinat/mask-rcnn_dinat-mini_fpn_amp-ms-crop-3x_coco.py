# box AP 47.2, mask AP 42.5, 40 M parameters (arXiv:2209.15001). Weights: MIT.
# Settings: github.com/SHI-Labs/Neighborhood-Attention-Transformer, a layer norm for every map and dilations for large
# images.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/3x_swin.py"]
model = dict(
    backbone=dict(
        model="dinat_mini",
        mixer_options=[
            dict(dilations=(1, 28)),
            dict(dilations=(1, 7, 1, 14)),
            dict(dilations=(1, 3, 1, 5, 1, 7)),
            dict(dilations=(1, 3)),
        ],
        map_norm="layernorm_1e-5",
        drop_path_rate=0.2,
    )
)
optim_wrapper = dict(type="AmpOptimWrapper")
