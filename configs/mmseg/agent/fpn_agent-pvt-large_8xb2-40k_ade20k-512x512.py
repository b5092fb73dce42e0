# mIoU 46.52, 52 M parameters (arXiv:2312.08874). Weights: no licence stated.
_base_ = "./fpn_agent-pvt-tiny_8xb2-40k_ade20k-512x512.py"
model = dict(backbone=dict(model="agent_pvt_large"))
