# box AP 51.1, mask AP 44.4 (arXiv:2106.13797). Weights: Apache-2.0.
_base_ = "./cascade-mask-rcnn_pvt-v2-b2-li_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="pvt_v2_b2"))
