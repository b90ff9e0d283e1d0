"""nnU-Net's trainers by name: which of them leave the network as the plan describes it.

A trainer may build any network, also one whose tensors have the plan's names and shapes, such as a U-Net with another
activation. nnU-Net rebuilds the trainer's network at inference. Here no trainer is imported, so its name decides.
"""

from __future__ import annotations

from voxtile_build.errors import NetworkError

LENGTHS = tuple(
    f"nnUNetTrainer_{epochs}"
    for epochs in (
        *("1epoch", "5epochs", "10epochs", "20epochs", "50epochs", "100epochs", "250epochs", "500epochs", "750epochs"),
        *("2000epochs", "4000epochs", "8000epochs"),
        *(f"{number}epochs_NoMirroring" for number in (250, 2000, 4000, 8000)),
    )
)
NNUNET = (
    "nnUNetTrainer",
    *LENGTHS,
    "nnUNetTrainerBenchmark_5epochs", "nnUNetTrainerBenchmark_5epochs_noDataLoading",
    "nnUNetTrainerNoDA", "nnUNetTrainerNoMirroring", "nnUNetTrainer_noDummy2DDA",
    "nnUNetTrainerDA5", "nnUNetTrainerDA5ord0", "nnUNetTrainerDA5Segord0", "nnUNetTrainerDA5_10epochs",
    "nnUNetTrainer_DASegOrd0", "nnUNetTrainer_DASegOrd0_NoMirroring",
    "nnUNetTrainer_onlyMirror01", "nnUNetTrainer_onlyMirror01_1500ep", "nnUNetTrainer_onlyMirror01_DASegOrd0",
    "nnUNetTrainer_onlyMirror01_DA5",
    "nnUNetTrainer_warmup", "nnUNetTrainerCosAnneal",
    "nnUNetTrainerAdam", "nnUNetTrainerAdam1en3", "nnUNetTrainerAdam3en4",
    "nnUNetTrainerVanillaAdam", "nnUNetTrainerVanillaAdam1en3", "nnUNetTrainerVanillaAdam3en4",
    "nnUNetTrainerAdan", "nnUNetTrainerAdan1en3", "nnUNetTrainerAdan3en4", "nnUNetTrainerAdan1en1",
    "nnUNetTrainerAdanCosAnneal",
    "nnUNetTrainerDiceLoss", "nnUNetTrainerDiceCELoss_noSmooth", "nnUNetTrainerCELoss", "nnUNetTrainerCELoss_5epochs",
    "nnUNetTrainerTopk10Loss", "nnUNetTrainerTopk10LossLS01", "nnUNetTrainerDiceTopK10Loss",
    "nnUNetTrainerNoDeepSupervision",
    "nnUNetTrainer_probabilisticOversampling", "nnUNetTrainer_probabilisticOversampling_033",
    "nnUNetTrainer_probabilisticOversampling_010",
    "nnUNet_Trainer_BS8",
)  # fmt: skip
"""Trainers of nnunetv2 2.8.1 that build the plan's network."""
TOTALSEGMENTATOR = (
    "nnUNetTrainer_MOSAIC_1k_QuarterLR_NoMirroring", "nnUNetTrainerDiceTopK10Loss_2000epochs",
    "nnUNetTrainerSkeletonRecall",
)  # fmt: skip
"""Trainers of TotalSegmentator 2, which change loss and schedule alone."""
KEEPING = frozenset((*NNUNET, *TOTALSEGMENTATOR))
PRIMUS = "a Primus transformer"
OTHER = {
    "nnUNetTrainerBN": "a network with batch normalisation",
    **dict.fromkeys(
        (
            "AbstractPrimus",
            *(f"nnUNet_Primus_{size}_Trainer" for size in "SBML"),
            "nnUNet_Primus_M_Trainer_BS8", "nnUNet_Primus_M_Trainer_BS8_2e4",
            *(f"nnUNet_PrimusV{version}{size}_Trainer" for version in (2, 3) for size in "SBML"),
            *(f"_Primus_{size}_96_BS1" for size in "SBM"), "_Primus_L_48_BS1",
        ),
        PRIMUS,
    ),
}  # fmt: skip
"""Trainers of nnunetv2 2.8.1 that build other networks."""


def check_trainer(name: str, where: str, *, keeps_network: bool) -> tuple[str, ...]:
    """Refuse a trainer that may build another network than the plan describes.

    Args:
        name: the class's name, as the checkpoint has it.
        where: names the checkpoint in errors.
        keeps_network: whether the user says that the trainer leaves the network as the plan describes it.

    Returns:
        What card and certificate are to say of it; nothing for a trainer that is known.

    Raises:
        NetworkError: the trainer is not known, and the user says nothing; or it is known to build another network.
    """
    if name in KEEPING:
        return ()
    if name in OTHER:
        raise NetworkError(
            f"{where}: {name} of nnU-Net builds {OTHER[name]}, not the plan's network; export that as .onnx, and "
            "give that by network.file in a spec"
        )
    if keeps_network:
        return (f"{name or 'a trainer without a name'} builds the plan's network: stated at import, not checked",)
    raise NetworkError(
        f"{where}: expected a trainer of nnU-Net or TotalSegmentator, found {name or 'none'}, which may build another "
        "network than the plan describes, also one with the same weights, such as one with another activation. Look at "
        "its class: if neither it nor a class above it has build_network_architecture of its own, say so with "
        "--trainer-keeps-network; else export the network as .onnx, and give that by network.file in a spec"
    )
