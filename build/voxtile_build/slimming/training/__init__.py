"""Training of a student on what its teacher answered: loss, schedule, checkpoints."""

from voxtile_build.slimming.training.device import Device as Device
from voxtile_build.slimming.training.pace import patch_seconds as patch_seconds
from voxtile_build.slimming.training.schedule import Budget as Budget
from voxtile_build.slimming.training.training import Progress as Progress
from voxtile_build.slimming.training.training import Trained as Trained
from voxtile_build.slimming.training.training import TrainingPlan as TrainingPlan
from voxtile_build.slimming.training.training import TrainingStopped as TrainingStopped
from voxtile_build.slimming.training.training import train as train
