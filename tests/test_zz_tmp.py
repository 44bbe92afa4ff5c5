import time
from test_exhaustive import *
def test_it():
    for name,config,seed in [MODELS[0],MODELS[9],MODELS[17],MODELS[40],MODELS[48]]:
        t=time.time()
        r=compared(name,config,seed,"zero",("split","joint")[seed%2],SPEEDUPS)
        print(round(time.time()-t,1), r)
        t=time.time()
        print(compared_in_single("ragged",200,"mean","split",{n:SPEEDUPS[n] for n in ("all on","all off")}),time.time()-t)
