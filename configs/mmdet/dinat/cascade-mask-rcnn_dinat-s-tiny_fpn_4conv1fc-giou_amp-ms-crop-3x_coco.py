# box AP 51.0, mask AP 44.1, 86 M parameters (arXiv:2209.15001). Weights: MIT.
# Settings: github.com/SHI-Labs/Neighborhood-Attention-Transformer, a layer norm for every map and dilations for large
# images.
_base_ = [
    "../_base_/models/cascade-mask-rcnn.py",
    "../_base_/schedules/3x_swin.py",
    "../_base_/backbones/dinat-s-tiny.py",
]
model = dict(backbone=dict(model="dinat_s_tiny", drop_path_rate=0.3, **_base_.dinat_s_tiny))
optim_wrapper = dict(type="AmpOptimWrapper")
