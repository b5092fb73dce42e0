# box AP 44.6 (arXiv:2106.13797). Weights: Apache-2.0.
_base_ = "./retinanet_pvt-v2-b0_fpn_1x_coco.py"
model = dict(backbone=dict(model="pvt_v2_b2"))
