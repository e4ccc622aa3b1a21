//! Elements of DER (X.690), the encoding of certificates. Pure.

/// Tag of a sequence.
pub const SEQUENCE: u8 = 0x30;
/// Tag of a set.
pub const SET: u8 = 0x31;
/// Tag of an object identifier.
pub const OBJECT_ID: u8 = 0x06;
/// The object identifier 2.5.4.3, common name.
pub const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The explicit tag of a certificate's version.
const VERSION: u8 = 0xa0;

/// The first element: its tag, its content, and the remaining bytes. `None` if the bytes have no element.
pub fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if bytes.is_empty() || bytes.len() > 4 {
            return None;
        }
        (bytes.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// Content of the first element, if the element has this tag, and the remaining bytes.
pub fn of_tag(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (is, content, rest) = element(der)?;
    (is == tag).then_some((content, rest))
}

/// The fields of a certificate after its version: serial number, signature algorithm, issuer, validity, subject, key and
/// extensions (RFC 5280 4.1). `None` if the bytes do not begin as a certificate.
pub fn certificate_fields(der: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = of_tag(der, SEQUENCE)?;
    let (to_be_signed, _) = of_tag(certificate, SEQUENCE)?;
    // The version is present from version 2 on.
    Some(of_tag(to_be_signed, VERSION).map_or(to_be_signed, |(_, rest)| rest))
}

/// An attribute of a distinguished name: object identifier, tag and content of the value.
pub type Attribute<'a> = (&'a [u8], u8, &'a [u8]);

/// The attributes of a distinguished name in their order. `None` if the name does not have the form of one.
pub fn attributes(mut name: &[u8]) -> Option<Vec<Attribute<'_>>> {
    let mut found = Vec::new();
    while !name.is_empty() {
        let (mut set, rest) = of_tag(name, SET)?;
        while !set.is_empty() {
            let (attribute, more) = of_tag(set, SEQUENCE)?;
            let (id, value) = of_tag(attribute, OBJECT_ID)?;
            let (tag, text, _) = element(value)?;
            found.push((id, tag, text));
            set = more;
        }
        name = rest;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_split_and_names_are_read() {
        assert_eq!(element(&[0x0c, 2, b'a', b'b', 9]), Some((0x0c, &b"ab"[..], &[9][..])));
        assert_eq!(element(&[0x0c, 0x81, 1, b'a']), Some((0x0c, &b"a"[..], &[][..])));
        for bad in [&[][..], &[0x0c], &[0x0c, 2, b'a'], &[0x0c, 0x80], &[0x0c, 0x85, 0, 0, 0, 0, 1, b'a']] {
            assert_eq!(element(bad), None, "{bad:?}");
        }
        let name = [0x31, 9, 0x30, 7, 0x06, 2, 0x55, 4, 0x0c, 1, b'n'];
        assert_eq!(attributes(&name), Some(vec![(&[0x55, 4][..], 0x0c, &b"n"[..])]));
        assert_eq!(attributes(&name[..6]), None);
        assert_eq!(attributes(&[]), Some(Vec::new()));
    }

    #[test]
    fn the_fields_of_a_certificate_follow_its_version_where_it_has_one() {
        let with = |version: &[u8]| {
            let fields = [version, &[0x02, 1, 7]].concat();
            let inner = [&[0x30, u8::try_from(fields.len()).unwrap()][..], &fields].concat();
            [&[0x30, u8::try_from(inner.len()).unwrap()][..], &inner].concat()
        };
        let serial = &[0x02, 1, 7][..];
        assert_eq!(certificate_fields(&with(&[0xa0, 3, 2, 1, 2])), Some(serial));
        assert_eq!(certificate_fields(&with(&[])), Some(serial));
        assert_eq!(certificate_fields(&[0x02, 1, 7]), None);
    }
}
