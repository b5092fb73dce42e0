# box AP 52.7, mask AP 46.4 (arXiv:2411.07635). Weights: MIT.
_base_ = "./mask-rcnn_ravlt-s_fpn_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="ravlt_b", drop_path_rate=0.4))
