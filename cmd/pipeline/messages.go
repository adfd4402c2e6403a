package main

import "casty"

// These keys are all that nodes and clients must agree on to find each other,
// and the types in them all that they must agree on to talk.
var (
	SensorKey  = casty.NewServiceKey[casty.StreamProducerMsg[SensorReading]]("sensor")
	MonitorKey = casty.NewServiceKey[MonitorMsg]("monitor")
)

type (
	// SensorRef is where a stream of readings begins.
	SensorRef = casty.ActorRef[casty.StreamProducerMsg[SensorReading]]
	// AlertsRef is where a stream of alerts begins.
	AlertsRef = casty.ActorRef[casty.StreamProducerMsg[Alert]]
	// MonitorRef is who subscribes to streams of alerts.
	MonitorRef = casty.ActorRef[MonitorMsg]
)

// A SensorReading is an element of the streams from the nodes to the client.
type SensorReading struct {
	Sensor string
	Seq    int // from 1
	Value  float64
	Unit   string
}

// An Alert is an element of the stream from the client to the monitor.
type Alert struct {
	Reading SensorReading
	Limit   float64
}

// MonitorMsg tells a monitor where a client's alerts begin, and which of the
// monitors is to receive them. A ref is data like any other: the monitor
// subscribes to one, although nobody can dial the client.
type MonitorMsg struct {
	Alerts AlertsRef
	For    MonitorRef
}

// sensorPrefix and the kind of a sensor are the name of its actor.
const sensorPrefix = "sensor-"
