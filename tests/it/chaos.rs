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
    host_frozen_redis: "host-frozen-redis",
}
