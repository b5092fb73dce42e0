# box AP 53.4, mask AP 45.9 (arXiv:2406.02021). Weights: Apache-2.0.
_base_ = "./cascade-mask-rcnn_ffnet-2_fpn_4conv1fc-giou_ms-crop-3x_coco.py"
model = dict(backbone=dict(model="ffnet_4", drop_path_rate=0.6))
# From weights for 384 x 384 pixels; tested with averaged weights.
custom_hooks = [dict(type="EMAHook", ema_type="ExpMomentumEMA", momentum=0.0001, priority=49)]
