package serve

import (
	"crypto/sha256"
	"fmt"
	"net"
)

// greet says how to try the server.
func greet(addr net.Addr, keys *Keys, secret string, o flags) {
	host := addr.String()
	if tcp, ok := addr.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		host = fmt.Sprintf("127.0.0.1:%d", tcp.Port)
	}
	url := "http://" + host + "/scep"
	sum := sha256.Sum256(keys.CA.Certificate().Raw)
	fmt.Print("SCEP server is ready.\n\n")
	line := func(name, value string) { fmt.Printf("  %-11s  %s\n", name, value) }
	line("URL", url)
	line("fingerprint", fmt.Sprintf("%x", sum))
	line("challenge", secret)
	for _, a := range keys.Where {
		line(a.Name, a.Value)
	}
	if keys.Check != nil {
		line("state", "http://"+host+"/readyz")
	}
	line("data", o.dir)
	fmt.Printf(`
Try it from another terminal:

  go run ./examples/enroll enroll -url %s \
    -fingerprint %x \
    -challenge %s -cn device-1 -out device-1
`, url, sum, secret)
	if o.legacy {
		fmt.Printf(`
Or, because -legacy is on, with Debian's scep package:

  scepclient -server-url %s -challenge %s -cn device-2 \
    -private-key device-2.key -certificate device-2.pem
`, url, secret)
	}
	fmt.Println()
}
