# box AP 46.9, mask AP 42.8, 68 M parameters (arXiv:2312.08874). Weights: no licence stated.
_base_ = "./mask-rcnn_agent-pvt-tiny_fpn_1x_coco.py"
model = dict(backbone=dict(model="agent_pvt_large", drop_path_rate=0.2))
