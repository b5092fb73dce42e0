# No published figure at hand (arXiv:2507.00698). Weights: no licence stated.
_base_ = "./mask-rcnn_mavit-t_fpn_amp-1x_coco.py"
model = dict(backbone=dict(model="mavit_b", drop_path_rate=0.4))
