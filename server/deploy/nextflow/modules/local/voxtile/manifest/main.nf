process VOXTILE_MANIFEST {
    tag "${meta.id}"
    label 'process_single'

    container "${params.voxtile_container}"

    input:
    tuple val(meta), path(scans, stageAs: 'scans')

    output:
    tuple val(meta), path("cases.csv"), emit: manifest
    tuple val("${task.process}"), val('voxtile'), eval("voxtile --version | sed 's/^.* //'"), topic: versions, emit: versions_voxtile

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    """
    voxtile manifest scans/ \\
        -o cases.csv \\
        ${args}
    """

    stub:
    """
    printf 'case,image\\n' > cases.csv
    """
}
