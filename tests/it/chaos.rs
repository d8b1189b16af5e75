//! Every case of the fault runner in its short form.

use synapse_tests::chaos::verify;

/// One test for each case, so that each can be run alone.
macro_rules! cases {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                verify($name, 1).unwrap();
            }
        )*

        #[test]
        fn every_case_is_a_test() {
            let names: Vec<_> = synapse_tests::chaos::all().iter().map(|case| case.name).collect();
            assert_eq!(names, [$($name),*]);
        }
    };
}

cases! {
    host_killed_embedded: "host-killed-embedded",
    host_killed_redis: "host-killed-redis",
    host_killed_redis_group: "host-killed-redis-group",
    host_killed_redis_to_embedded: "host-killed-redis-to-embedded",
    host_killed_kafka: "host-killed-kafka",
    host_killed_kafka_to_redis: "host-killed-kafka-to-redis",
    host_killed_redis_to_kafka: "host-killed-redis-to-kafka",
    host_frozen_redis: "host-frozen-redis",
    host_frozen_kafka: "host-frozen-kafka",
    hosts_come_and_go_redis: "hosts-come-and-go-redis",
    hosts_come_and_go_kafka: "hosts-come-and-go-kafka",
    redis_killed_always: "redis-killed-always",
    redis_killed_everysec: "redis-killed-everysec",
    redis_power_loss_everysec: "redis-power-loss-everysec",
    redis_flushall: "redis-flushall",
    redis_flushall_group: "redis-flushall-group",
    redis_group_destroyed: "redis-group-destroyed",
    redis_consumer_dies: "redis-consumer-dies",
    redis_trimmed: "redis-trimmed",
    redis_trimmed_group: "redis-trimmed-group",
    redis_failover: "redis-failover",
    kafka_broker_killed: "kafka-broker-killed",
    kafka_broker_restarted: "kafka-broker-restarted",
    kafka_broker_frozen: "kafka-broker-frozen",
    kafka_slow_plugin: "kafka-slow-plugin",
    kafka_trimmed: "kafka-trimmed",
    network_reset: "network-reset",
    network_black_hole: "network-black-hole",
    network_one_way: "network-one-way",
    network_slow: "network-slow",
    disk_full_embedded: "disk-full-embedded",
    disk_full_redis_everysec: "disk-full-redis-everysec",
    disk_full_redis_always: "disk-full-redis-always",
    bit_flipped: "bit-flipped",
    torn_tail: "torn-tail",
    clock_host_embedded: "clock-host-embedded",
    clock_host_redis: "clock-host-redis",
    clock_redis: "clock-redis",
    poison_embedded: "poison-embedded",
    poison_redis: "poison-redis",
    poison_kafka: "poison-kafka",
    sink_read_only: "sink-read-only",
    sink_out_of_memory: "sink-out-of-memory",
    sink_denied: "sink-denied",
}
