process VOXTILE_COLLECT {
    tag "${meta.id}"
    label 'process_single'

    container "${params.voxtile_container}"

    input:
    tuple val(meta), path(places, stageAs: 'places/?')

    output:
    tuple val(meta), path("masks"), emit: masks
    tuple val(meta), path("results.csv"), emit: table
    tuple val(meta), path("results.jsonl"), emit: lines
    tuple val("${task.process}"), val('voxtile'), eval("voxtile --version | sed 's/^.* //'"), topic: versions, emit: versions_voxtile

    when:
    task.ext.when == null || task.ext.when

    script:
    // 1: some scans failed, and the table says which.
    """
    mkdir masks
    for place in places/*; do
        cp -RL "\$place/." masks/
    done
    voxtile collect masks || { code=\$?; [ \$code -eq 1 ] || exit \$code; }
    cp masks/results.csv masks/results.jsonl .
    """

    stub:
    """
    mkdir masks
    touch results.csv results.jsonl
    """
}
