//! What consul8s left.

use super::*;

#[test]
fn what_consul8s_left_goes_once_ours_stands() {
    for (is_old, dialect) in [(true, true), (false, true), (true, false)] {
        let mut harness = Harness::new();
        harness.endpoints_are_old = is_old;
        let slice = Slice { is_ipv6: false, ports: vec![], endpoints: BTreeMap::new() };
        let mirrored = "endpointslicemirroring-controller.k8s.io";
        harness.show(&key(DB), "db-mirrored", "u1", mirrored, slice);
        let mut db = service("u1", &[(CONSUL8S_NAME, "pg")]);
        db.labels = [(CONSUL8S_SOURCE.into(), "consul".into())].into();
        if !dialect {
            db = service("u1", &[(IMPORT, "pg")]);
        }
        harness.service(db).answer(&source("pg", None), &[]);
        assert_eq!(harness.log(), [""; 0], "nothing of ours is there");
        harness.answer(&source("pg", None), &["10.0.0.1"]);
        let wanted: &[&str] = if dialect { &["write 1", "delete endpoints"] } else { &["write 1"] };
        assert_eq!(harness.log(), wanted);
        let is_told =
            |harness: &Harness| harness.problems().contains("kubectl delete endpoints db");
        assert_eq!(is_told(&harness), !(is_old && dialect), "the mirror follows soon");
        assert_eq!(harness.import.is_settled(), !(is_old && dialect));
        harness.answer(&source("pg", None), &["10.0.0.2"]);
        assert_eq!(harness.log(), ["write 1"], "it is asked once");
        assert!(is_told(harness.later(11)) && harness.import.is_settled(), "it did not follow");
    }
}
