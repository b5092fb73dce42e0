# box AP 55.3, mask AP 47.7 (arXiv:2411.07635). Weights: MIT.
_base_ = "./cascade-mask-rcnn_ravlt-s_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="ravlt_b", drop_path_rate=0.4))
