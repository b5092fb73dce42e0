# Semantic FPN as in PVT (arXiv:2102.12122): 40,000 steps of AdamW that decays everything, polynomial rate, no warm-up.
_base_ = [f"{__import__('mmseg').__path__[0]}/.mim/configs/_base_/schedules/schedule_40k.py", "../runtime.py"]
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=0.0002, weight_decay=0.0001))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=40000, by_epoch=False)]
