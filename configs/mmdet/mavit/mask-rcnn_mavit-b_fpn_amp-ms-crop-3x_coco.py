# No published figure at hand (arXiv:2507.00698). Weights: no licence stated.
_base_ = "./mask-rcnn_mavit-s_fpn_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="mavit_b", drop_path_rate=0.4))
