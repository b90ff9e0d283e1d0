process VOXTILE_BATCH {
    tag "${meta.id} ${meta.shard}"
    label 'process_medium'

    container "${params.voxtile_container}"

    input:
    tuple val(meta), path(manifest, stageAs: 'cases.csv'), path(scans, stageAs: 'scans')
    val model
    val urls

    output:
    tuple val(meta), path("masks"), emit: masks
    tuple val("${task.process}"), val('voxtile'), eval("voxtile --version | sed 's/^.* //'"), topic: versions, emit: versions_voxtile

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def servers = urls.tokenize(' ,').collect { url -> "--url ${url}" }.join(' ')
    // 1: some scans failed. Their lines say why, and the others have their masks.
    """
    voxtile batch \\
        --manifest cases.csv \\
        --out masks \\
        --shard ${meta.shard} \\
        --model ${model} \\
        ${servers} \\
        --quiet \\
        ${args} || { code=\$?; [ \$code -eq 1 ] || exit \$code; }
    """

    stub:
    """
    mkdir -p masks/.voxtile-batch/shards
    """
}
