"""The arguments of a trainer that has never heard of any launcher."""

import argparse


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", default="", help="names the run on the command line of every rank")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--step-s", type=float, default=0.05)
    parser.add_argument("--log-every", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--save-until", type=int, default=1 << 30)
    parser.add_argument("--out", default="out")
    parser.add_argument("--load", default="", help="the checkpoint to begin from")
    parser.add_argument("--ckpt-step", type=int, help="its step")
    parser.add_argument("--newest", action="store_true", help="begin from the newest checkpoint in --out")
    parser.add_argument("--saves-on-signal", action="store_true", help="USR1 asks for a checkpoint")
    parser.add_argument("--quiet-at", type=int, help="evaluate before this step, without a word")
    parser.add_argument("--quiet-s", type=float, default=3.0)
    parser.add_argument("--hang-at", type=int, help="rank 1 hangs at this step, once")
    parser.add_argument("--end-at", default="", help="STEP:CODE,...: all ranks end at a step with a code, once each")
    return parser.parse_args()
