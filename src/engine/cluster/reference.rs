//! How an operator names an object: by its name, its id, or the unique start of its id.

use super::{Kind, Refusal};
use crate::types::{Id, Name};

/// Finds the one object that `reference` means. A name goes before an id, and a whole id before the
/// start of one.
///
/// # Errors
/// None is meant, or more than one.
pub fn resolve<'a, K>(
    kind: Kind,
    reference: &str,
    objects: impl Iterator<Item = (Id<K>, &'a Name)>,
) -> Result<Id<K>, Refusal> {
    let objects: Vec<_> = objects.collect();
    let named = objects.iter().filter(|(_, name)| name.as_str() == reference);
    let whole = reference.parse::<Id<K>>().ok();
    let started = || {
        let starts = |id: &Id<K>| !reference.is_empty() && id.to_string().starts_with(reference);
        objects.iter().map(|(id, _)| *id).filter(starts).collect::<Vec<_>>()
    };
    let mut matches: Vec<Id<K>> = named.map(|(id, _)| *id).collect();
    if matches.is_empty() {
        matches = match whole {
            Some(id) => objects.iter().map(|(id, _)| *id).filter(|other| *other == id).collect(),
            None => started(),
        };
    }
    match matches[..] {
        [id] => Ok(id),
        [] => Err(Refusal::Unknown { kind, reference: reference.to_owned() }),
        [..] => {
            let matches = matches.len();
            Err(Refusal::Ambiguous { kind, reference: reference.to_owned(), matches })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NetworkId;

    #[test]
    fn a_name_an_id_and_the_start_of_an_id_are_understood() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let (a, b) = (NetworkId::from_u128(1), NetworkId::from_u128(2));
        let start = a.to_string()[..24].to_owned();
        let objects = [(a, name("blue")), (b, name(&start)), (b, name("red"))];
        let find = |text: &str| resolve(Kind::Network, text, objects.iter().map(|(i, n)| (*i, n)));

        assert_eq!(find("blue"), Ok(a));
        assert_eq!(find(&a.to_string()), Ok(a));
        assert_eq!(find(&start), Ok(b), "a name goes before the start of an id");
        for missing in ["", "green", &NetworkId::from_u128(3).to_string()] {
            let reference = missing.to_owned();
            let unknown = Refusal::Unknown { kind: Kind::Network, reference };
            assert_eq!(find(missing), Err(unknown), "{missing}");
        }
        let text = find("000").unwrap_err().to_string();
        assert_eq!(text, "'000' is 3 networks; give more of the id");
    }
}
