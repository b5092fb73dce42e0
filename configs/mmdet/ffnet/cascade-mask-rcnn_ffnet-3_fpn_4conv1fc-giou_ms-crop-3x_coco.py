# box AP 52.8, mask AP 45.6 (arXiv:2406.02021). Weights: Apache-2.0.
_base_ = "./cascade-mask-rcnn_ffnet-2_fpn_4conv1fc-giou_ms-crop-3x_coco.py"
model = dict(backbone=dict(model="ffnet_3", drop_path_rate=0.6))
