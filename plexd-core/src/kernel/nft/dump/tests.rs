use super::*;
use crate::kernel::nft::expression::{counts, named};

/// What an element does besides, with these attributes beside its key.
fn extra_of(with: impl Fn(&mut Attributes)) -> Extra {
    let mut element = Attributes::default();
    with(element.nest(attribute::ELEMENT_KEY, &Data::Value(vec![10, 0, 0, 1]).attributes()));
    let (mut list, mut message) = (Attributes::default(), Attributes::default());
    list.nest(attribute::LIST_ELEMENT, &element);
    message.nest(attribute::ELEMENTS, &list);
    let mut elements = Elements::new();
    add_elements(&mut elements, Reader(message.as_slice()));
    assert_eq!(elements.len(), 1);
    elements.into_values().next().unwrap().extra
}

#[test]
fn whatever_an_element_does_but_count_is_something_else() {
    let expression = |name: &str| named(name, &counts(Count::default()));
    let list = |names: &[&str]| {
        let mut list = Attributes::default();
        for name in names {
            list.nest(attribute::LIST_ELEMENT, &expression(name));
        }
        list
    };
    let one = |name: &str| extra_of(|element| _ = element.nest(attribute::ELEMENT_EXPR, &expression(name)));
    let several =
        |names: &[&str]| extra_of(|element| _ = element.nest(attribute::ELEMENT_EXPRESSIONS, &list(names)));
    assert_eq!(extra_of(|_| {}), Extra::Nothing);
    assert_eq!(one("counter"), Extra::Counter);
    assert_eq!(several(&["counter"]), Extra::Counter);
    for name in ["limit", "quota", "connlimit", "last", "counter2"] {
        assert_eq!(one(name), Extra::Other, "{name}");
        assert_eq!(several(&[name]), Extra::Other, "{name}");
    }
    assert_eq!(several(&["counter", "limit"]), Extra::Other);
    let key_end = Data::Value(vec![10, 0, 0, 9]).attributes();
    assert_eq!(extra_of(|element| _ = element.nest(attribute::ELEMENT_KEY_END, &key_end)), Extra::Other);
    assert_eq!(extra_of(|element| _ = element.text(attribute::ELEMENT_OBJREF, "denied")), Extra::Other);
    assert_eq!(extra_of(|element| _ = element.u64(attribute::ELEMENT_TIMEOUT, 1_000)), Extra::Other);
    // A comment is none.
    assert_eq!(extra_of(|element| _ = element.bytes(6, b"comment")), Extra::Nothing);
}

#[test]
fn chains_sets_and_objects_that_somebody_added_are_a_difference() {
    let table = Table::default();
    let differs = |change: &dyn Fn(&mut Frame)| {
        let mut dump = Dump::default();
        change(&mut dump.frame);
        match dump.compare(&table) {
            crate::kernel::ObservedTable::Differs { what } => what,
            other => format!("{other:?}"),
        }
    };
    let message = |name: u16| {
        let mut message = Attributes::default();
        message.text(name, "more");
        message
    };
    let chain = message(attribute::CHAIN_NAME);
    let set = message(attribute::SET_NAME);
    let object = message(attribute::OBJECT_NAME);
    let flowtable = message(attribute::FLOWTABLE_NAME);
    let read = |message| Reader(Attributes::as_slice(message));
    assert!(differs(&|_| {}).starts_with("Same"));
    assert_eq!(differs(&|frame| add_chain(&mut frame.chains, read(&chain))), "chain more was added");
    assert_eq!(differs(&|frame| add_map(&mut frame.maps, read(&set))), "map more was added");
    assert_eq!(differs(&|frame| add_object(&mut frame.objects, read(&object))), "object more was added");
    assert_eq!(
        differs(&|frame| add_flowtable(&mut frame.flowtables, read(&flowtable))),
        "flowtable more was added"
    );
}
