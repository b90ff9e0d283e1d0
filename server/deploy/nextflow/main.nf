#!/usr/bin/env nextflow
// A cohort with Nextflow: a manifest of a folder, one task for each shard, one table.

include { VOXTILE_MANIFEST } from './modules/local/voxtile/manifest/main'
include { VOXTILE_BATCH    } from './modules/local/voxtile/batch/main'
include { VOXTILE_COLLECT  } from './modules/local/voxtile/collect/main'

workflow {
    if (!params.scans || !params.model || !params.urls) {
        error("expected --scans FOLDER, --model NAME and --urls HOST:PORT, found one of them missing")
    }
    def count = params.shards as int
    def cohort = [id: params.id]

    scans = channel.value(file(params.scans, type: 'dir', checkIfExists: true))

    VOXTILE_MANIFEST(scans.map { folder -> [cohort, folder] })

    shards = channel.of(0..<count)
        .map { index -> cohort + [shard: "${index}/${count}"] }
        .combine(VOXTILE_MANIFEST.out.manifest.map { _meta, manifest -> manifest })
        .combine(scans)

    VOXTILE_BATCH(shards, params.model, params.urls)

    VOXTILE_COLLECT(
        VOXTILE_BATCH.out.masks
            .map { _meta, masks -> masks }
            .collect()
            .map { places -> [cohort, places] }
    )
}
