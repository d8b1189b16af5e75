//! Every case of the fault runner in its short form.

use synapse_tests::chaos::verify;

/// One test for each case, so that each can be run alone; it has the case's name.
macro_rules! cases {
    ($($test:ident,)*) => {
        $(
            #[test]
            fn $test() {
                verify(&name(stringify!($test)), 1).unwrap();
            }
        )*

        #[test]
        fn every_case_is_a_test() {
            let names: Vec<_> = synapse_tests::chaos::all().iter().map(|case| case.name).collect();
            assert_eq!(names, [$(name(stringify!($test))),*]);
        }
    };
}

fn name(test: &str) -> String {
    test.replace('_', "-")
}

cases! {
    host_killed_embedded,
    host_killed_redis,
    host_killed_redis_group,
    host_killed_redis_to_embedded,
    host_killed_kafka,
    host_killed_kafka_at_least_once,
    host_killed_kafka_to_redis,
    host_killed_redis_to_kafka,
    host_frozen_redis,
    host_frozen_kafka,
    host_dies_redis,
    host_dies_kafka,
    hosts_come_and_go_redis,
    hosts_come_and_go_redis_group,
    hosts_come_and_go_kafka,
    redis_killed_always,
    redis_killed_everysec,
    redis_power_loss_everysec,
    redis_flushall,
    redis_flushall_group,
    redis_group_destroyed,
    redis_consumer_dies,
    redis_trimmed,
    redis_trimmed_group,
    redis_failover,
    redis_cluster_resharded,
    kafka_broker_killed,
    kafka_broker_restarted,
    kafka_broker_frozen,
    kafka_slow_plugin,
    kafka_trimmed,
    network_reset_redis,
    network_reset_kafka,
    network_black_hole_redis,
    network_black_hole_kafka,
    network_one_way_redis,
    network_one_way_kafka,
    network_slow_redis,
    network_slow_kafka,
    disk_full_embedded,
    disk_full_redis_everysec,
    disk_full_redis_always,
    disk_full_kafka,
    bit_flipped,
    torn_tail,
    clock_host_embedded,
    clock_host_redis,
    clock_host_kafka,
    clock_redis,
    poison_embedded,
    poison_redis,
    poison_kafka,
    sink_read_only,
    sink_out_of_memory,
    sink_denied,
}
