# No published figure at hand (arXiv:2202.09741). Weights: Apache-2.0.
_base_ = "./mask-rcnn_van-b0_fpn_1x_coco.py"
model = dict(backbone=dict(model="van_b3", drop_path_rate=0.3))
