# box AP 47.8, mask AP 43.1 (arXiv:2106.13797). Weights: Apache-2.0.
_base_ = "./mask-rcnn_pvt-v2-b0_fpn_ms-crop-3x_coco.py"
model = dict(backbone=dict(model="pvt_v2_b2"))
