//! One question to Consul's DNS (RFC 1035), over UDP.

use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Consul answers its own names within a millisecond; a packet may be lost.
const DEADLINE: Duration = Duration::from_secs(2);
/// Identifies the answer; one question a socket needs no other.
const ID: [u8; 2] = [0x6b, 0x63];

/// What was answered: the code and how many records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) code: u8,
    pub(super) records: u16,
}

/// Asks for the A records of `name` at `server`, a host with a port.
pub(super) async fn ask(server: &str, name: &str) -> Result<Answer, String> {
    let asked = async {
        let failed = |error: std::io::Error| error.to_string();
        let mut addresses = tokio::net::lookup_host(server).await.map_err(failed)?;
        let address = addresses.next().ok_or("the host has no address")?;
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).await.map_err(failed)?;
        socket.connect(address).await.map_err(failed)?;
        socket.send(&question(name)).await.map_err(failed)?;
        let mut packet = [0; 512];
        loop {
            let length = socket.recv(&mut packet).await.map_err(failed)?;
            if let Some(answer) = read(&packet[..length]) {
                return Ok(answer);
            }
        }
    };
    timeout(DEADLINE, asked).await.unwrap_or_else(|_| Err(format!("no answer in {DEADLINE:?}")))
}

fn question(name: &str) -> Vec<u8> {
    let mut packet = ID.to_vec();
    // Recursion is desired; one question.
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap_or(63).min(63));
        packet.extend(label.bytes().take(63));
    }
    // The root; type A, class IN.
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

/// The answer in a packet; none: it is no answer to us.
fn read(packet: &[u8]) -> Option<Answer> {
    let [first, second, flags, code, _, _, high, low, ..] = *packet else { return None };
    let is_answer = [first, second] == ID && flags & 0x80 != 0;
    is_answer.then_some(Answer { code: code & 0x0f, records: u16::from_be_bytes([high, low]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_read_by_its_format() {
        let mut packet = question("a.bc");
        assert_eq!(packet[12..], [1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1]);
        assert_eq!(read(&packet), None, "a question");
        packet[2] |= 0x80;
        (packet[3], packet[7]) = (0x83, 2);
        assert_eq!(read(&packet), Some(Answer { code: 3, records: 2 }));
        assert_eq!(read(&packet[..5]), None);
    }
}
